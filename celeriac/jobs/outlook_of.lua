-- Outlook of: what a caller is told of a job that is known. a: id, scopes, told. Answers {} where it has aged out.
local r = read(a.id)
return r and outlook(r, a.scopes, a.told) or {}
