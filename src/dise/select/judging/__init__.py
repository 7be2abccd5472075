"""What candidates and policies cost, and how good they are."""
