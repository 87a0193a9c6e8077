"""`llm-infer serve`: OpenAI's API over HTTP, and a page to chat in."""
