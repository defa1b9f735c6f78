"""Tuning: search spaces, samplers, studies and their trials."""
