-- Finish: answer, cost, context, release and the next bells in one step. Only the run that holds the job may.
-- a: id, worker, nonce, state, model, usage (text), cost (text, nano-dollars), error (text), version, result_ttl,
-- context_ttl, max_messages, max_bytes. ARGV[2..4]: answer, receipt, turn, each "" for none.
-- Answers {"done", appended: "1", "0" or "", bells} or {"fenced"}.
local r = read(a.id)
local mine = fence(r, 'finish', a.worker, a.nonce)
if mine == 'fenced' then return {'fenced'} end
if mine == 'again' then return {'done', get(a.id, 'release_answer'), {}} end

local answer, receipt, turn, appended, bells = ARGV[2], ARGV[3], ARGV[4], '', {}
local group = call('HGET', K.worker(a.worker), 'queues') or r.queue
if r.context and turn ~= '' then
  appended = context_append(r.tenant, r.context, a.version, turn, a.max_messages, a.max_bytes) and '1' or '0'
end
call('HSET', K.job(a.id), 'answer', answer, 'receipt', receipt, 'model', a.model, 'usage', a.usage, 'cost', a.cost,
  'error', a.error, 'appended', appended)
release(r, 'finish', appended)
end_job(r, a.state, a.result_ttl, a.context_ttl, bells)
dispatch_for(group, 1 + MARGIN, bells)
sweep(3)
return {'done', appended, bells}
