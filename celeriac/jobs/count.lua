-- Count: how many jobs there are in each state. a: tenants (one page of them), states. Answers a number for each, and one of dead letters.
local sums = {}
for i = 1, #a.states + 1 do sums[i] = 0 end
for _, tenant in ipairs(a.tenants) do
  for i, state in ipairs(a.states) do sums[i] = sums[i] + call('ZCARD', K.jobs_in(tenant, state)) end
  sums[#sums] = sums[#sums] + call('ZCARD', K.dead(tenant))
end
return sums
