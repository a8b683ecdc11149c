-- Submit: record, index, context and ready line in one step, and a bell if a slot is free. Sent twice, it is one job.
-- a: id, tenant, agent, queue, priority, context (or null), if_busy, request_id, metadata (text), result. ARGV[2]: the spec.
-- Answers {"accepted", created ms, holder of the context or "", bells} or {"busy", holder}.
local context = a.context ~= cjson.null and a.context or nil
if call('EXISTS', K.job(a.id)) == 1 then
  return {'accepted', tonumber((get(a.id, 'created'))), waits_for(a.id) or '', {}}
end
local holder = context and context_holder(a.tenant, context)
if holder and a.if_busy == 'reject' then return {'busy', holder} end

local seq, bells = call('INCR', K.seq()), {}
call('HSET', K.job(a.id), 'tenant', a.tenant, 'agent', a.agent, 'queue', a.queue, 'priority', a.priority, 'seq', seq,
  'created', now, 'attempts', 0, 'retries', 0, 'ignore_result', a.ignore_result and 'true' or 'false',
  'request_id', a.request_id, 'metadata', a.metadata, 'spec', ARGV[2], 'place', 'new')
call('ZADD', K.jobs(a.tenant), seq, a.id)
local r = {id = a.id, place = 'new', queue = a.queue, priority = a.priority, tenant = a.tenant, seq = seq}
if context then call('HSET', K.job(a.id), 'context', context) end
if holder then
  context_wait(a.tenant, context, a.id, seq)
  move(r, 'behind')
else
  if context then context_hold(a.tenant, context, a.id) end
  to_ready(r)
  dispatch(a.queue, 1, bells)
end
sweep(3)
return {'accepted', now, holder or '', bells}
