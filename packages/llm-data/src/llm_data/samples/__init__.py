"""Records of every format as samples."""
