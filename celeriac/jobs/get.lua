-- Get: one job. a: id, fields. Answers {whom it waits for or "", values, calls, the jobs that it asked for}.
return {waits_for(a.id) or '', call('HMGET', K.job(a.id), unpack(a.fields)), call('HGETALL', K.calls(a.id)), call('HKEYS', K.children(a.id))}
