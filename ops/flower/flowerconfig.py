"""Flower as operators of Celeriac want it: loaded by Flower's own `--conf`, or by `FLOWER_CONF`.

A row is a job: its id, the summary as its result (state, agent, model, tokens, cost, seconds waited and run), when the worker
received and started it, and how often it was tried. No prompt and no answer reaches Flower.
"""

tasks_columns = "name,uuid,state,result,received,started,runtime,retries,worker"
max_tasks = 50_000
