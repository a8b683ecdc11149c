-- Finish: answer, cost, context, release and the next bells in one step. Only the run that holds the job may; its money
-- is booked in any case. a: id, worker, nonce, state, model, usage (text), error (text), settlement (or null), version,
-- max_messages, max_bytes, checked, keep. ARGV[2..3]: answer, turn, each "" for none.
-- Answers {"done", changed, money, state, cost, in doubt, appended: "1", "0" or "", bells} or {"fenced", changed, money};
-- changed: how the breaker of the last call's lane did; money: what became of its settlement, as `settle.lua` says it. A job that
-- was asked to stop and has no answer yet ends as that says.
local changed, money = '', ''
if a.settlement ~= cjson.null then
  local at
  money, at = book(a.id, a.settlement)
  if money == 'booked' then changed = lane_hear(a.settlement.heard, a.settlement.call, at) end
end
local r = read(a.id)
local mine = fence(r, 'finish', a.worker, a.nonce)
if mine == 'fenced' then return {'fenced', changed, money} end

local answer, turn, appended, bells = ARGV[2], ARGV[3], '', {}
if mine == 'mine' then
  doubt_open_calls(a.id) -- first: it may find what makes no sense, and then nothing is written
  local state, reason = a.state, a.error
  if r.stop and state ~= 'succeeded' then state, reason = r.stop, STOPPED[r.stop] end
  local group = call('HGET', K.worker(a.worker), 'queues') or r.queue
  if r.context and turn ~= '' then
    appended = context_append(r.tenant, r.context, a.version, turn, a.max_messages, a.max_bytes) and '1' or '0'
  end
  call('HSET', K.job(a.id), 'answer', answer, 'model', a.model, 'usage', a.usage, 'error', reason, 'appended', appended)
  if a.checked then call('HSET', K.job(a.id), 'checked', 1) end
  release(r, 'finish', '')
  end_job(r, state, bells, a.nonce)
  local cost, in_doubt = get(a.id, 'cost', 'in_doubt')
  call('HSET', K.job(a.id), 'release_answer', table.concat({state, cost or '0', in_doubt or '0', appended}, ' '))
  dispatch_for(group, 1 + MARGIN, bells)
  sweep(3)
end
local state, cost, in_doubt, kept = string.match(get(a.id, 'release_answer'), '^(%S+) (%S+) (%S+) (.*)$')
return {'done', changed, money, state, cost, in_doubt, kept, bells}
