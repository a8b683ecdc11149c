-- Shared by submit and outlook_of: when a job will probably start, what its agent's jobs cost, and what budgets leave. Nobody
-- depends on it: it is told to callers.
local LOOKED_AT = 20 -- tenants in a line; the others are taken to be as these are

-- About how many jobs of its own line go before it. r: one that is ready, or that nobody submitted yet (without a place).
local function ahead_of(r)
  local own = K.ready(r.line, r.priority, r.tenant)
  local mine = r.place and call('ZRANK', own, r.id) or call('ZCARD', own)
  local ahead = mine
  for priority = 0, tonumber(r.priority) do
    local rotation, others, looked = K.rotation(r.line, priority), 0, 0
    for _, tenant in ipairs(call('ZRANGE', rotation, 0, LOOKED_AT - 1)) do
      local waiting = call('ZCARD', K.ready(r.line, priority, tenant))
      -- Tenants take turns.
      if priority < tonumber(r.priority) then others, looked = others + waiting, looked + 1
      elseif tenant ~= r.tenant then others, looked = others + math.min(waiting, mine + 1), looked + 1 end
    end
    if looked > 0 then ahead = ahead + math.floor(others * math.max(looked, call('ZCARD', rotation) - 1) / looked) end
  end
  return ahead
end

-- Jobs a second that left the lines of a queue while others waited in them, lately; nil where that is not known.
local function pace_of(queue)
  local pace = redis.pcall('HGET', K.pace(), queue)
  pace = type(pace) == 'string' and tonumber(string.match(pace, ' (%S+)$') or '')
  return pace and pace > 0 and pace or nil
end

-- Answers {how many go before it, when it starts (ms), what a job of its agent costs, what its budgets leave}, each "" where nobody
-- can say. r: of a job that nobody submitted yet as it would be then, without a place where it would be ready, with resume_at where
-- it would be parked. scopes: whose budgets it is in. told: those of them of which it is told what they leave, null for all.
local function look_ahead(r, scopes, told)
  local ahead, starts, left, ends = '', nil, books.left(scopes)
  if not r.place or r.place == 'ready' then
    ahead = ahead_of(r)
    if ahead == 0 and not r.place and room(r.queue) > 0 then starts = now
    elseif pace_of(r.queue) then starts = now + (ahead + 1) / pace_of(r.queue) * 1000 end
  elseif r.place == 'rung' or r.place == 'running' then ahead, starts = 0, now
  elseif r.place == 'parked' then starts = tonumber(r.resume_at or call('HGET', K.job(r.id), 'resume_at') or '') end
  -- Without money nothing starts before the window ends.
  if left == '0' then starts = starts and ends > 0 and math.max(starts, ends) or nil end
  if told ~= cjson.null then left = books.left(told) end
  local mean = redis.pcall('HGET', K.mean_costs(), r.agent)
  return {ahead, starts and string.format('%.0f', starts) or '', type(mean) == 'string' and string.match(mean, ' (%d+)$') or '', left}
end

-- The same, or {} where what is looked at makes no sense: what is only told refuses no job.
local function outlook(r, scopes, told)
  local done, found = pcall(look_ahead, r, scopes, told)
  return done and found or {}
end
