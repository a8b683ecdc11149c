-- Settle: the money half goes by the call's name and always lands, once; the journal half needs the lease.
-- a: id, worker, nonce, settlement (call, stands, bound, nanos, facts; null for none), step (its number; null for none).
-- ARGV[2]: the step, packed.
-- Answers {"done", "fenced", or "gap" where steps before this one are missing; what became of the money: "booked", "again",
-- "unknown", "lost" or ""; how many steps are stored}.
local money = a.settlement ~= cjson.null and book(a.id, a.settlement) or ''
if a.step ~= cjson.null then
  local r = read(a.id)
  if fence(r, 'settle', a.worker, a.nonce) ~= 'mine' then return {'fenced', money, 0} end
  local stored = call('LLEN', K.journal(a.id))
  if stored < a.step then return {'gap', money, stored} end
  if stored == a.step then
    call('RPUSH', K.journal(a.id), ARGV[2])
    call('HSET', K.job(a.id), 'steps', a.step + 1)
  end
end
return {'done', money, 0}
