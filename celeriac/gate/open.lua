-- Open: an operator has put the price of a lane right: it is asked again, at bounds that are not raised. a: lane, nonce (of who asks).
-- Answers how it was: "closed", "raised", or "" where no call of it had cost more than its bound.
local nonce, was = string.match(of_lane(a.lane, 'opened_by') or '', '^(%x+) (%a+)$')
if nonce == a.nonce then return was end
local ratio, closed = lane_overran(a.lane)
redis.pcall('HDEL', K.overruns(), a.lane)
if not closed and ratio == 1000 then return '' end
was = closed and 'closed' or 'raised'
if closed and not lane_is_tried(a.lane) then
  lane_tell(a.lane, 'closed', 'operator', 0)
  -- The next call of it counts that: whoever asks here is no worker, and counts nothing.
  lane_set(a.lane, 'by_hand', 1)
-- Its breaker is as it was: closed, or open for another reason.
else lane_tell(a.lane, 'reset', 'operator', 0) end
lane_set(a.lane, 'opened_by', a.nonce .. ' ' .. was)
return was
