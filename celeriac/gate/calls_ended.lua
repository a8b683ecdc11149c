-- Ends: how calls of lanes ended in the last hours. a: lanes (one page of them), hours.
-- Answers for each {"answered", a code of an error or "took.N" (at most 1.25^N ms), how many, ...}.
local found, current = {}, math.floor(now / 3600000)
for i, lane in ipairs(a.lanes) do
  local sums, flat = {}, {}
  for hour = current - a.hours + 1, current do
    local all = redis.pcall('HGETALL', K.lane_calls(lane, string.format('%.0f', hour)))
    for n = 1, #all, 2 do sums[all[n]] = (sums[all[n]] or 0) + number(all[n + 1]) end
  end
  for how, count in pairs(sums) do
    flat[#flat + 1] = how
    flat[#flat + 1] = count
  end
  found[i] = flat
end
return found
