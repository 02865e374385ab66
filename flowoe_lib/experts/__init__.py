"""The experts that FlowOE imitates: one family a module."""
