-- Get: one job. a: id, fields. Answers {whom it waits for or "", values}.
return {waits_for(a.id) or '', call('HMGET', K.job(a.id), unpack(a.fields))}
