"""A shop with a flash sale: a FastAPI application, its visitors, and what keyheat changes.

    pip install 'keyheat[examples]'
    python -m examples.shop              # a sale without and with keyheat, and what was measured
    python -m examples.shop --serve      # and leave the shop running, with /metrics and /hot

# Layout

- `shop.py`: what the shop does with Redis, once as it is usually written and once with keyheat. Begin here.
- `web.py`: the web application around it.
- `visitors.py`: the load, over http.
- `sale.py`: one sale from an empty server to the books.
- `report.py`: the table.
"""
