"""OpenAI's HTTP API as values: requests checked, answers and errors built; no server in here."""
