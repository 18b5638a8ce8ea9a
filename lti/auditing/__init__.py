"""Audits: does a defense protect a user's own model and data?"""
