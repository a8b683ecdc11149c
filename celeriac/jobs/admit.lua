-- Admit: a call to a model is booked at its highest possible price before it is sent. The same call again gets the same
-- answer. a: id, worker, nonce, call, bound (text, nano-dollars), cap (of the whole job, text; "" for none), facts (text), lane
-- (null for a call that is made whatever is known of its lane), lease (ms that the call may take), input, output (tokens that it
-- may use at most), caps (requests and tokens a minute; 0 for any).
-- Answers {"admitted", input and output tokens that it is expected to use, the bound as it is booked (raised where calls of this
-- lane cost more than theirs; text)}, {"closed", ms to leave the lane alone, why},
-- {"spent"} where the job's cap leaves too little, {"stop", "cancelled" or "expired"} or {"fenced"}.
-- What a job has used of what it may cost, with all that work for it. Exact: amounts above 2^53 are refused.
local function use_of(id)
  local used = 0
  for _, sum in ipairs({get(id, 'cost', 'in_doubt', 'reserved', 'below_cost', 'below_in_doubt', 'below_reserved')}) do
    used = used + number(sum)
  end
  return used
end

local r = read(a.id)
if fence(r, 'admit', a.worker, a.nonce) ~= 'mine' then return {'fenced'} end
-- A run past its deadline buys nothing more: upkeep may not have looked yet.
local deadline = not r.stop and tonumber(get(a.id, 'deadline') or '')
if deadline and deadline <= now then
  call('ZREM', K.deadlines(), a.id)
  ask_to_stop(r, 'expired')
  r.stop = 'expired'
end
if r.stop then return {'stop', r.stop} end
local booked = call_read(a.id, a.call)
if booked then
  local input, output = string.match(booked.facts, '"took":%[(%d+),(%d+)%]')
  return {'admitted', number(input), number(output), booked.bound}
end
local bound = a.lane == cjson.null and a.bound or lane_bound(a.lane, a.bound)
local above, known = ancestors_of(a.id)
assert(known, 'no ancestors')
for _, payer in ipairs({{a.id, a.cap}, unpack(above)}) do
  if payer[2] ~= '' and use_of(payer[1]) + tonumber(bound) > tonumber(payer[2]) then return {'spent'} end
end
local need = {input = 0, output = 0}
if a.lane ~= cjson.null then
  local wait, why = lane_closed(a.lane)
  if wait then return {'closed', wait, why} end
  lane_cap(a.lane, 'own_requests', a.caps[1])
  lane_cap(a.lane, 'own_tokens', a.caps[2])
  need = lane_need(a.lane, a.input, a.output)
  -- Whoever was woken out of the line goes before whoever comes.
  local lane, at, input, output = string.match(get(a.id, 'woken') or '', '^(%S+) (%d+) (%d+) (%d+)$')
  local is_woken = lane == a.lane
  if is_woken then
    call('HDEL', K.job(a.id), 'woken')
    lane_promise(a.lane, number(at), {input = number(input), output = number(output)}, -1)
  end
  if lane_is_tried(a.lane) then
    -- It waits for nobody: all the others wait for it. If it fails, another one is to try next.
    call('HDEL', K.job(a.id), 'lane_place')
  else
    wait = lane_take(a.lane, need, not is_woken and lane_ahead(a.lane) or nil)
    if wait then return {'closed', wait, 'rate_reached'} end
  end
  lane_ask(a.lane, a.call, a.lease)
end
local took = string.format('"took":[%.0f,%.0f]}', need.input, need.output)
local facts = string.gsub(a.facts, '}$', (a.facts == '{}' and '' or ',') .. took)
call_move(a.id, a.call, {stands = 'new', bound = bound, amount = '0', at = tostring(now), facts = facts}, 'open', bound)
return {'admitted', need.input, need.output, bound}
