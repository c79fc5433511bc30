"""Does the champion still live in the world it was made for? Two windows compared, verdicts, what they ask for."""
