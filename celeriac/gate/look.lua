-- Look: what the fleet knows of lanes. a: lanes (one page of them).
-- Answers for each {ms for which it may not be asked, why, failures of breakers in a row, jobs that wait for it, thousandths of
-- its bound that a call cost at most (1000 where none cost more), rates as name, most, period (ms), left, ...}.
local found = {}
for _, lane in ipairs(a.lanes) do
  local wait, why = lane_closed(lane)
  local rates = {}
  for name, b in pairs((lane_buckets(lane))) do
    if name ~= 'ramp' then
      for _, value in ipairs({name, b.most, b.period, math.floor(b.level)}) do rates[#rates + 1] = value end
    end
  end
  found[#found + 1] =
    {wait or 0, why or '', number(of_lane(lane, 'opened')), redis.call('ZCARD', K.lane_line(lane)), (lane_overran(lane)), rates}
end
return found
