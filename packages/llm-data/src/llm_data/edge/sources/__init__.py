"""Records out of files of every format, folders and Hugging Face datasets."""
