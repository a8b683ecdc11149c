-- Admit: a call to a model is booked at its highest possible price before it is sent. The same call again gets the same
-- answer. a: id, worker, nonce, call, bound (text, nano-dollars), facts (text).
-- Answers {"admitted"}, {"stop", "cancelled" or "expired"} or {"fenced"}.
local r = read(a.id)
if fence(r, 'admit', a.worker, a.nonce) ~= 'mine' then return {'fenced'} end
if r.stop then return {'stop', r.stop} end
if call('HEXISTS', K.calls(a.id), a.call) == 0 then
  call_move(a.id, a.call, {stands = 'new', bound = a.bound, amount = '0', at = tostring(now), facts = a.facts}, 'open', a.bound)
end
return {'admitted'}
