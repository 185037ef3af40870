"""Advice: what is the most that fits a card, what to change where nothing does, and which card to take."""
