-- Leave: a worker that holds no job goes in good order. One that still holds some stays until its lease ends.
-- a: worker. Answers 1 if it is gone, 0 if it still holds jobs.
if call('EXISTS', K.held(a.worker)) == 1 then return 0 end
change_worker(a.worker, function() call('DEL', K.worker(a.worker)) end)
call('ZREM', K.workers(), a.worker)
call('SREM', K.quarantined(), a.worker)
call('DEL', K.stops(a.worker))
return 1
