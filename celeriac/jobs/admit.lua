-- Admit: a call to a model is booked at its highest possible price before it is sent. The same call again gets the same
-- answer. a: id, worker, nonce, call, bound (text, nano-dollars), cap (of the whole job, text; "" for none), facts (text), lane
-- (null for a call that is made whatever is known of its lane), lease (ms that the call may take), input, output (tokens that it
-- may use at most), caps (requests and tokens a minute; 0 for any), books (scopes, series, zone, windows as `books.windows` takes them;
-- null for a call that is in no scope's sums).
-- Answers {"admitted", input and output tokens that it is expected to use, the bound as it is booked (raised where calls of this
-- lane cost more than theirs; text), what it is booked under, 1 where it tries its lane out}, {"windows", ms by this clock} where the windows of that time have to be
-- said, {"full", "held", "spent" or "never", scope, window, its end (s; 0 for none), cap, bound}, {"closed", ms to leave the lane alone, why},
-- {"spent"} where the job's cap leaves too little, {"stop", "cancelled" or "expired"} or {"fenced"}.
-- What a job has used of what it may cost, with all that work for it; and what is reserved. Exact: amounts above 2^53 are refused.
local function use_of(id)
  local cost, in_doubt, reserved, below_cost, below_in_doubt, below_reserved =
    get(id, 'cost', 'in_doubt', 'reserved', 'below_cost', 'below_in_doubt', 'below_reserved')
  return number(cost) + number(in_doubt) + number(below_cost) + number(below_in_doubt), number(reserved) + number(below_reserved)
end

local r = read(a.id)
if fence(r, 'admit', a.worker, a.nonce) ~= 'mine' then return {'fenced'} end
-- A run past its deadline buys nothing more: upkeep may not have looked yet.
local deadline = not r.stop and tonumber(get(a.id, 'deadline') or '')
if deadline and deadline <= now then
  call('ZREM', K.deadlines(), a.id)
  ask_to_stop(r, 'expired')
  r.stop = 'expired'
end
if r.stop then return {'stop', r.stop} end
local booked = call_read(a.id, a.call)
if booked then
  local input, output = string.match(booked.facts, '"took":%[(%d+),(%d+)%]')
  return {'admitted', number(input), number(output), booked.bound, booked.books or '', a.lane ~= cjson.null and of_lane(a.lane, 'probe') == a.call and 1 or 0}
end
local bound = a.lane == cjson.null and a.bound or lane_bound(a.lane, a.bound)
local above, known = ancestors_of(a.id)
assert(known, 'no ancestors')
-- Out of whose line it comes, if out of one: room was kept for it there.
local woken_lane, woken_at, woken_input, woken_output = string.match(get(a.id, 'woken') or '', '^(%S+) (%d+) (%d+) (%d+)$')
local woken_scope = woken_lane and string.match(woken_lane, '^%' .. books.LINE .. '(.+)$')
if woken_scope then
  call('HDEL', K.job(a.id), 'woken')
  books.keep_promise(woken_scope, number(woken_input))
end
for i, payer in ipairs({{a.id, a.cap}, unpack(above)}) do
  if payer[2] ~= '' then
    local firm, reserved = use_of(payer[1])
    local no = books.no_room_in(firm, reserved, tonumber(payer[2]), tonumber(bound))
    local scope = 'job%3A' .. payer[1]
    -- What the others hold that work for it will come back in part.
    if i > 1 and (no == 'held' or not no and not woken_scope and books.is_waited_for(scope)) then
      if no then books.wait_for(scope) end
      return {'full', 'held', scope, 'ever', 0, payer[2], bound}
    elseif no then return {'spent'} end
  end
end
local b
if a.books ~= cjson.null then
  local windows = books.windows(a.books.zone, a.books.windows)
  if not windows then return {'windows', now} end
  b = books.of(a.books.scopes, a.books.series, windows)
  local full = books.room(b, windows, tonumber(bound), woken_scope)
  if full then
    if full[1] == 'held' and full[6] then books.wait_for(full[2]) end
    return {'full', full[1], full[2], full[3], full[4], string.format('%.0f', full[5]), bound}
  end
end
local need = {input = 0, output = 0}
if a.lane ~= cjson.null then
  local wait, why = lane_closed(a.lane)
  if wait then return {'closed', wait, why} end
  lane_cap(a.lane, 'own_requests', a.caps[1])
  lane_cap(a.lane, 'own_tokens', a.caps[2])
  need = lane_need(a.lane, a.input, a.output)
  -- Whoever was woken out of the line goes before whoever comes.
  local is_woken = woken_lane == a.lane
  if is_woken then
    call('HDEL', K.job(a.id), 'woken')
    lane_promise(a.lane, number(woken_at), {input = number(woken_input), output = number(woken_output)}, -1)
  end
  if lane_is_tried(a.lane) then
    -- It waits for nobody: all the others wait for it. If it fails, another one is to try next.
    call('HDEL', K.job(a.id), 'lane_place')
  else
    wait = lane_take(a.lane, need, not is_woken and lane_ahead(a.lane) or nil)
    if wait then return {'closed', wait, 'rate_reached'} end
  end
  need.tries = lane_ask(a.lane, a.call, a.lease)
end
if b then
  local broken = books.reserve(b, bound)
  assert(not broken, broken)
end
local took = string.format('"took":[%.0f,%.0f]}', need.input, need.output)
local facts = string.gsub(a.facts, '}$', (a.facts == '{}' and '' or ',') .. took)
call_move(a.id, a.call, {stands = 'new', bound = bound, amount = '0', at = tostring(now), facts = facts, books = b and books.text(b)}, 'open', bound)
return {'admitted', need.input, need.output, bound, b and books.text(b) or '', need.tries or 0}
