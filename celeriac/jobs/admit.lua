-- Admit: a call to a model is booked at its highest possible price before it is sent. The same call again gets the same
-- answer. a: id, worker, nonce, call, bound (text, nano-dollars), facts (text), lane (null for a call that is made whatever is
-- known of its lane), lease (ms that the call may take), input, output (tokens that it may use at most), caps (requests and
-- tokens a minute; 0 for any).
-- Answers {"admitted", input and output tokens that it is expected to use}, {"closed", ms to leave the lane alone, why},
-- {"stop", "cancelled" or "expired"} or {"fenced"}.
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
local need = a.lane ~= cjson.null and lane_need(a.lane, a.input, a.output) or {input = 0, output = 0}
if call('HEXISTS', K.calls(a.id), a.call) == 0 then
  if a.lane ~= cjson.null then
    local wait, why = lane_closed(a.lane)
    if wait then return {'closed', wait, why} end
    lane_cap(a.lane, 'own_requests', a.caps[1])
    lane_cap(a.lane, 'own_tokens', a.caps[2])
    -- Whoever was woken out of the line has what it needs already, unless the lane had to be left alone since.
    local lane, woken, input, output = string.match(get(a.id, 'ticket') or '', '^(%S+) (%d+) (%d+) (%d+)$')
    if lane == a.lane and lane_holds(a.lane, number(woken)) then need.input, need.output = number(input), number(output)
    else
      wait = lane_take(a.lane, need, lane_ahead(a.lane))
      if wait then return {'closed', wait, 'rate_reached'} end
    end
    lane_ask(a.lane, a.call, a.lease)
  end
  call('HDEL', K.job(a.id), 'ticket', 'lane_since', 'lane_waits', 'lane_place')
  call_move(a.id, a.call, {stands = 'new', bound = a.bound, amount = '0', at = tostring(now), facts = a.facts}, 'open', a.bound)
end
return {'admitted', need.input, need.output}
