"""The explorer's entry, which `peftplan ui` serves."""

from explorer.pages import serve

serve()
