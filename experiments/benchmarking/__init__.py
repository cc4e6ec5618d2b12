"""How fast encoders and whole agents are, against NatureCNN and plain SB3."""
