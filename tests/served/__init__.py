"""Tests on one real server, which is started for this folder and ended with it."""
