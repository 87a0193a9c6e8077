"""One module a task: how its records become columns."""
