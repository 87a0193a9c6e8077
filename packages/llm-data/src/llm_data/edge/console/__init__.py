"""What a terminal shows and what a command line may say."""
