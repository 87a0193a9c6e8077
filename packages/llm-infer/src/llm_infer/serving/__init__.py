"""What stands between a server and an engine: one thread that computes, mailboxes that are read."""
