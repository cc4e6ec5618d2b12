"""What a trained agent is good for: whole games, scores, pictures."""
