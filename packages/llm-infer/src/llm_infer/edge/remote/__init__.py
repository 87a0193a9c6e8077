"""A model behind a server with OpenAI's API: `--engine openai:URL`."""
