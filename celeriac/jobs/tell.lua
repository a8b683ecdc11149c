-- Tell: upkeep rings for ends of which Celery has not been told, a few at once and at growing intervals: the worker died
-- between the end and the telling, the bell was lost, or there were too many at once. What no run could tell is
-- given up. a: page, keep. Answers {bells, given up (ids)}.
local bells, given_up = {}, {}
-- A time that lies further ahead than it may is from another clock.
for _, id in ipairs(call('ZRANGEBYSCORE', K.untold(), '(' .. now + TELL_AGAIN, '+inf', 'LIMIT', 0, a.page)) do
  call('ZADD', K.untold(), 'LT', now + TELL_AGAIN, id)
end
local room = TELL_BELLS - in_telling()
local function tell(id, r)
  local state, tried, rings = get(id, 'state', 'tellings', 'tell_rings')
  if tonumber(tried or 0) >= TELL_TRIES then
    forget_untold(id)
    let_age(r, state)
    given_up[#given_up + 1] = id
  elseif room > 0 then
    local queue = queue_to_tell(r)
    if queue and rings and call('LLEN', queue) > call('ZCARD', K.rung(queue)) then
      -- The list still holds bells that ring for no waiting job: this one was not lost, its workers are busy.
      call('ZADD', K.untold(), now + PATIENCE, id)
    else ring_to_tell(r, bells) end
    room = room - 1
  else return 'stays' end
end
each_due(K.untold(), a.page, function(id, r)
  local said
  if not is_to_tell(r) or not try(id, 'untold', function() said = tell(id, r) end) then cannot_tell(id) end
  return said
end)
return {bells, given_up}
