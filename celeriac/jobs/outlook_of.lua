-- Outlook of: what a caller is told of a job that waits, or that was not submitted. a: id (of one that is known, or null), line, queue,
-- priority, tenant, agent, scopes, told.
local r = a.id ~= cjson.null and read(a.id) or {line = a.line, queue = a.queue, priority = a.priority, tenant = a.tenant, agent = a.agent}
return outlook(r, a.scopes, a.told)
