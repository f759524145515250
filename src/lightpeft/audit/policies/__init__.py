"""The joint step of a clean and a poisoned task, and the policies that join their gradients."""
