"""Runs on several machines: who takes part, and how schedulers start them."""
