"""The HTTP application: the page, its files, and the API that the page and other programs use.

A client posts a mesh to `/api/sources` (for variations) and a request to `/api/requests`, asks for its state, and
fetches meshes. `POST /api/mesh` does it in one call. The schema is at `/api/openapi.json`. Errors are JSON with one
sentence: {"error": "..."}. Files of the page come from a fixed list; no path of a request names a file.
"""

import base64
import binascii
import contextlib
import functools
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from fastapi import Depends, FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteError

from g3pt.data.pictures import cut_out
from g3pt.geometry.files import FORMATS, write_mesh
from g3pt.models.sampling import MAX_CFG, SampleConfig
from pipelines.cli.errors import one_line
from pipelines.generate.config import MAX_SEED, is_blank
from pipelines.report.html import ASSETS as REPORT
from pipelines.serve.engine import BATCH, Busy, Engine, Request, Shape
from pipelines.serve.guard import Guard
from pipelines.serve.uploads import Uploads

ASSETS = Path(__file__).with_name("assets")
JAVASCRIPT = "text/javascript; charset=utf-8"
FILES = {
    "page.js": (ASSETS / "page.js", JAVASCRIPT),
    "page.css": (ASSETS / "page.css", "text/css; charset=utf-8"),
    "report.css": (REPORT / "report.css", "text/css; charset=utf-8"),
    "viewer.js": (REPORT / "viewer.js", JAVASCRIPT),
    "three.module.min.js": (REPORT / "three.module.min.js", JAVASCRIPT),
    "three.core.min.js": (REPORT / "three.core.min.js", JAVASCRIPT),
    "LICENSE.three": (REPORT / "LICENSE.three", "text/plain; charset=utf-8"),
}
MEDIA = {"glb": "model/gltf-binary", "obj": "model/obj", "ply": "application/octet-stream", "stl": "model/stl"}
MAX_TEXT = 1000  # characters
Format = Literal["glb", "obj", "ply", "stl"]
Strength = Annotated[float, Field(ge=0, le=MAX_CFG)]


class Wanted(BaseModel):
    """What to make: a text, a picture, a mesh to vary, or a mixture of them."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=MAX_TEXT, description="description of the object")] | None = None
    image: Annotated[str, Field(description="picture, base64")] | None = None
    source: Annotated[str, Field(description="id of an uploaded mesh")] | None = None
    keep_scales: int = Field(0, ge=0, description="coarsest scales kept of the uploaded mesh")
    cfg_text: Strength = Field(SampleConfig.cfg, description="strength of guidance by the text")
    cfg_image: Strength = Field(SampleConfig.cfg, description="strength of guidance by the picture")
    seed: int = Field(0, ge=0, le=MAX_SEED - BATCH, description="seed of the first mesh")
    num: int = Field(1, ge=1, le=BATCH, description="number of meshes")
    resolution: Literal[32, 64, 128] = Field(64, description="cells per side of the surface's grid")
    previews: bool = Field(False, description="also decode the first mesh after each scale")


class Source(BaseModel):
    """An uploaded mesh."""

    source: str = Field(description="id for `source` of a request")
    scales: int = Field(description="number of scales, the most that can be kept")


class Preview(BaseModel):
    """The first mesh, decoded from its coarsest scales."""

    scales: int
    file: str = Field(description="address, GLB")


class Made(BaseModel):
    """One mesh of a request."""

    seed: int
    error: str = Field(description="why there is no mesh; empty if there is one")
    vertices: int
    faces: int
    watertight: bool
    files: dict[str, str] = Field(description="format -> address")


class State(BaseModel):
    """A request's state."""

    id: str
    state: Literal["waiting", "running", "done", "failed"]
    before: int = Field(description="requests that wait before this one")
    error: str
    note: str
    seconds: float
    previews: list[Preview]
    meshes: list[Made]


class Error(BaseModel):
    """What went wrong, in one sentence."""

    error: str


class Service:
    """What the routes share: model, engine, uploads, facts."""

    def __init__(self, model: Any, facts: dict[str, Any], max_waiting: int) -> None:
        self.model, self.facts = model, facts
        self.engine, self.uploads = Engine(model, max_waiting), Uploads(model)

    def request(self, wanted: Wanted) -> Request:
        """The engine's request. ValueError for what cannot be made."""
        text = None if wanted.text is None or is_blank(wanted.text) else wanted.text
        if text is None and wanted.image is None and wanted.source is None:
            raise ValueError("give a text, a picture or a mesh")
        pixels, note = self._picture(wanted.image) if wanted.image is not None else (None, "")
        request = Request(
            text=text,
            pixels=pixels,
            seeds=range(wanted.seed, wanted.seed + wanted.num),
            settings=SampleConfig(cfg_text=wanted.cfg_text, cfg_image=wanted.cfg_image),
            known=self._known(wanted),
            resolution=wanted.resolution,
            with_previews=wanted.previews,
            note=note,
        )
        self.model.encode_prompts([text], [None])  # a text that is too long is refused before it waits
        return request

    def _picture(self, image: str) -> tuple[Any, str]:
        if self.model.image is None:
            raise ValueError("this model does not read pictures")
        try:
            content = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("image is not base64") from None
        return cut_out(content, self.model.config.image_size)

    def _known(self, wanted: Wanted) -> torch.Tensor:
        if wanted.source is None:
            if wanted.keep_scales:
                raise ValueError("keep_scales needs a source, the id of an uploaded mesh")
            return torch.zeros(0, dtype=torch.int64)
        codes_S = self.uploads.codes(wanted.source)
        if codes_S is None:
            raise ValueError("this source is unknown: upload the mesh again")
        return self.model.kept_codes(codes_S, wanted.keep_scales)

    def state(self, request: Request) -> State:
        """What there is of a request."""
        place, state = f"/api/requests/{request.id}", request.state
        is_done = state == "done"
        return State(
            id=request.id,
            state=state,
            before=self.engine.position(request),
            error=request.error,
            note=request.note,
            seconds=round(request.seconds, 3),
            previews=[
                Preview(scales=scales, file=f"{place}/previews/{scales}.glb")
                for scales, shape in sorted(request.previews.items())
                if not shape.error
            ],
            meshes=[_made(place, number, request) for number in range(len(request.shapes))] if is_done else [],
        )


def _made(place: str, number: int, request: Request) -> Made:
    shape = request.shapes[number]
    files = {} if shape.error else {kind: f"{place}/meshes/{number}.{kind}" for kind in FORMATS}
    return Made(
        seed=request.seeds[number],
        error=shape.error,
        vertices=len(shape.vertices),
        faces=len(shape.faces),
        watertight=shape.is_watertight,
        files=files,
    )


def mesh_bytes(shape: Shape, kind: Format) -> bytes:
    """A mesh as a file of this format."""
    with tempfile.TemporaryDirectory(prefix="g3pt-download-") as folder:
        file = Path(folder, f"mesh.{kind}")
        write_mesh(file, shape.vertices, shape.faces)
        return file.read_bytes()


def application(service: Service, max_bytes: int, loopback_only: bool) -> Any:
    """The ASGI application; it starts the engine and ends it with the child that converts."""

    @contextlib.asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await run_in_threadpool(service.engine.stop)
        service.uploads.close()

    app = FastAPI(title="g3pt", version=str(service.facts["name"]), docs_url=None, redoc_url=None,
                  openapi_url="/api/openapi.json", lifespan=life,
                  responses={code: {"model": Error} for code in (400, 404, 413, 422, 429)})  # fmt: skip
    add_errors(app)
    add_page(app)
    add_api(app, service)
    return Guard(app, max_bytes, loopback_only)


def add_errors(app: FastAPI) -> None:
    """Every error is JSON with one sentence."""

    @app.exception_handler(StarletteError)
    async def http(_: HttpRequest, error: StarletteError) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        return JSONResponse({"error": f"{name or 'the request'}: {first['msg']}"}, status_code=422)

    @app.exception_handler(Busy)
    async def busy(_: HttpRequest, error: Busy) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=429, headers={"retry-after": "5"})

    @app.exception_handler(Exception)
    async def failed(_: HttpRequest, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server failed on this request"}, status_code=500)

    @app.exception_handler(ValueError)
    async def refused(_: HttpRequest, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": one_line(error)}, status_code=400)


def add_page(app: FastAPI) -> None:
    """The page and its files."""

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return Response((ASSETS / "page.html").read_bytes(), media_type="text/html; charset=utf-8")

    @app.get("/assets/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, "there is no such file")
        return Response(_asset(name), media_type=FILES[name][1])


@functools.cache
def _asset(name: str) -> bytes:
    content = FILES[name][0].read_bytes()
    return content.replace(b'import("three")', b'import("/assets/three.module.min.js")')


def add_api(app: FastAPI, service: Service) -> None:
    """The routes below /api."""

    def found(request_id: str) -> Request:
        request = service.engine.get(request_id)
        if request is None:
            raise HTTPException(404, "this request is unknown, or too old")
        return request

    Found = Annotated[Request, Depends(found)]

    @app.get("/api/model", summary="Facts of the model")
    def model() -> dict[str, Any]:
        return service.facts

    @app.post(
        "/api/sources",
        summary="Upload a mesh to vary",
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
    )
    async def upload(http: HttpRequest, format: str) -> Source:
        """The body is the file's content; `format` is its ending: glb, gltf, obj, ply, stl or off."""
        content = await http.body()
        return Source(
            source=await run_in_threadpool(service.uploads.add, content, format), scales=len(service.model.scales)
        )

    @app.post("/api/requests", status_code=202, summary="Ask for meshes")
    def ask(wanted: Wanted) -> State:
        request = service.request(wanted)
        service.engine.put(request)
        return service.state(request)

    @app.get("/api/requests/{request_id}", summary="State of a request")
    def state(request: Found) -> State:
        return service.state(request)

    @app.get("/api/requests/{request_id}/meshes/{number}.{kind}", summary="A mesh", response_class=Response)
    def mesh(request: Found, number: int, kind: Format) -> Response:
        shapes = request.shapes if request.state == "done" else []
        if not 0 <= number < len(shapes) or shapes[number].error:
            raise HTTPException(404, "there is no such mesh")
        return _download(shapes[number], kind, f"g3pt-{request.seeds[number]}")

    @app.get("/api/requests/{request_id}/previews/{scales}.glb", summary="A preview", response_class=Response)
    def preview(request: Found, scales: int) -> Response:
        shape = request.previews.get(scales)
        if shape is None or shape.error:
            raise HTTPException(404, "there is no such preview")
        return _download(shape, "glb", f"preview-{scales}")

    @app.post("/api/mesh", summary="Make one mesh and wait for it", response_class=Response)
    def one(wanted: Wanted, format: Format = "glb") -> Response:
        request = service.request(wanted.model_copy(update={"num": 1, "previews": False}))
        service.engine.put(request)
        request.finished.wait()
        if request.error:
            raise HTTPException(500, request.error)
        if request.shapes[0].error:
            raise ValueError(request.shapes[0].error)
        return _download(request.shapes[0], format, f"g3pt-{wanted.seed}")


def _download(shape: Shape, kind: Format, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}.{kind}"'}
    return Response(mesh_bytes(shape, kind), media_type=MEDIA[kind], headers=headers)
