"""The embedding server as Python sees it, blocking and asyncio."""
