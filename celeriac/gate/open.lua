-- Open: an operator has put the price of a lane right: it is asked again, at bounds that are not raised. a: lane.
-- Answers how it was: "closed", "raised", or "" where no call of it had cost more than its bound.
local ratio, closed = lane_overran(a.lane)
local was = closed and 'closed' or ratio > 1000 and 'raised' or ''
redis.pcall('HDEL', K.overruns(), a.lane)
if was == 'closed' then
  lane_tell(a.lane, 'closed', 'operator', 0)
  -- The next call of it counts that: whoever asks here is no worker, and counts nothing.
  lane_set(a.lane, 'by_hand', 1)
elseif was == 'raised' then lane_tell(a.lane, 'reset', 'operator', 0) end
return was
