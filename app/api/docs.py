"""The API reference, from files of our own: no network needed to read it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

ASSETS = "/docs/assets"


def install(app: FastAPI) -> None:
    """Serve what /docs needs."""
    package = importlib.util.find_spec("fastapi_offline")
    assert package is not None
    assert package.origin is not None
    app.mount(ASSETS, StaticFiles(directory=Path(package.origin).parent / "static"), name="docs")


@router.get("/docs")
async def read_docs() -> HTMLResponse:
    """Show the API reference."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="SAIMP Train: API reference",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
        swagger_ui_parameters={
            "docExpansion": "list",
            "defaultModelsExpandDepth": 0,
            "tryItOutEnabled": True,
        },
    )
