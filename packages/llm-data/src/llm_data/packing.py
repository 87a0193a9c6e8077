"""Placeholder while its helper writes it."""
