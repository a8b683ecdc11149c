-- Admit: a call to a model is booked at its highest possible price before it is sent. The same call again gets the same
-- answer. a: id, worker, nonce, call, bound (text, nano-dollars), facts (text).
-- Answers {"admitted"}, {"stop", "cancelled" or "expired"} or {"fenced"}.
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
if call('HEXISTS', K.calls(a.id), a.call) == 0 then
  call_move(a.id, a.call, {stands = 'new', bound = a.bound, amount = '0', at = tostring(now), facts = a.facts}, 'open', a.bound)
end
return {'admitted'}
