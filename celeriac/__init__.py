"""Celeriac, the room: everything the product is. It imports none of the doors (tasks, worker, api_shim, ops)."""
