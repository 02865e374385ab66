"""Kernel settings of this checkout, read because IPYTHONDIR points here."""

c = get_config()  # type: ignore[name-defined]  # noqa: F821

# ipykernel warns on every start that its sockets are local TCP; that would land in notebook outputs.
c.Application.log_level = 50
# Kernels that run side by side would compete for one history database.
c.HistoryManager.enabled = False
