"""What search.py is made of: the space, what a candidate costs, and the study over games."""
