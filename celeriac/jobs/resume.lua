-- Resume: somebody decides about calls that a parked job asks for. Once none is left to be decided the job is ready.
-- a: id, tenant ("" for any), approve, reason, calls, keep.
-- Answers {"unknown"}, {"idle", state} where it asks for nothing, {"strange", call} for one that it does not ask for,
-- {"decided", call} for one that was decided otherwise, or {"done", how many are left, bells}. Where the answer is a refusal,
-- nothing was changed.
local r, bells = read(a.id), {}
if not r or r.newer or (a.tenant ~= '' and r.tenant ~= a.tenant) then return {'unknown'} end
local asked, decided, reason, state = get(a.id, 'asked', 'decided', 'reason', 'state')
local function list(text)
  local readable, found = pcall(cjson.decode, text or '')
  return readable and type(found) == 'table' and found or {}
end
local waits = r.place == 'parked' and reason == 'waiting_approval'
asked, decided = waits and list(asked) or {}, list(decided)

local open = {}
for _, call_asked in ipairs(asked) do
  if type(call_asked) == 'table' and type(call_asked.call) == 'string' then open[call_asked.call] = true end
end
for _, name in ipairs(a.calls) do
  local known = decided[name]
  if known and known[1] ~= a.approve then return {'decided', name} end
  if not known and not open[name] then return waits and {'strange', name} or {'idle', state or SEEN_AS[r.place]} end
end

for _, name in ipairs(a.calls) do
  if open[name] then decided[name], open[name] = {a.approve, a.reason}, nil end
end
local left = {}
for _, call_asked in ipairs(asked) do
  if open[call_asked.call] then left[#left + 1] = call_asked end
end
if waits then
  call('HSET', K.job(a.id), 'decided', cjson.encode(decided))
  if #left > 0 then call('HSET', K.job(a.id), 'asked', cjson.encode(left))
  else
    call('HDEL', K.job(a.id), 'asked', 'asked_until', 'asked_over')
    leave_place(r)
    to_ready(r)
    dispatch(r.queue, 1, bells)
  end
end
return {'done', #left, bells}
