// Meshes and point clouds to turn. One WebGL renderer draws into many 2D canvases (a browser allows about 16 WebGL contexts),
// and only when something changed: a canvas came into view, was dragged, or got a key. Canvases of one group turn together.
const OBJECTS = JSON.parse(document.getElementById("objects")?.textContent ?? "[]");
const COLOURS = { data: 0xc9c4bb, model: 0x8fb0dc };
const START = { azimuth: 0.6, elevation: 0.32, zoom: 1 };
const FIELD_OF_VIEW = 28;
const PIXELS = Math.min(640, Math.round(300 * Math.min(window.devicePixelRatio || 1, 2)));

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
}

// int16 positions to numbers, once for each object.
function decode(object) {
  if (!object.positions.length || object.points) return object;
  const whole = new Int16Array(bytes(object.positions));
  object.points = Float32Array.from(whole, (value, i) => (value / 32767) * object.scale + object.centre[i % 3]);
  object.corners = object.indices ? new Uint16Array(bytes(object.indices)) : null;
  object.normals = object.directions ? Float32Array.from(new Int8Array(bytes(object.directions)), (value) => value / 127) : null;
  return object;
}

// --- drawing ---------------------------------------------------------------------------------------------------------

async function openArtist() {
  const probe = document.createElement("canvas").getContext("webgl2"); // three.js would fill the console if there were none
  if (probe) {
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    const THREE = await import("three");
    return new Artist(THREE, new THREE.WebGLRenderer({ antialias: true, alpha: true }));
  }
  document.getElementById("no-webgl").hidden = false;
  return new Painter();
}

// With WebGL: clay under one key light that moves with the eye, and a soft sky.
class Artist {
  constructor(THREE, renderer) {
    this.THREE = THREE;
    this.renderer = renderer;
    renderer.setSize(PIXELS, PIXELS, false);
    this.camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW, 1, 0.01, 100);
    this.scene = new THREE.Scene();
    const key = new THREE.DirectionalLight(0xfffaf2, 2.7);
    key.position.set(0.9, 1.3, 1.2);
    const fill = new THREE.DirectionalLight(0xdfe9ff, 0.4);
    fill.position.set(-1.6, 0.2, 0.5);
    this.camera.add(key, fill);
    this.scene.add(this.camera, new THREE.HemisphereLight(0xffffff, 0x3d4048, 0.62));
    this.shapes = new Map();
  }

  shape(object) {
    if (!this.shapes.has(object)) this.shapes.set(object, object.indices ? this.mesh(decode(object)) : this.discs(decode(object)));
    return this.shapes.get(object);
  }

  forget(object) {
    const shape = this.shapes.get(object);
    if (!shape) return;
    shape.geometry.dispose();
    shape.material.dispose();
    this.shapes.delete(object);
  }

  material(object) {
    return new this.THREE.MeshStandardMaterial({ color: COLOURS[object.role], roughness: 0.82, metalness: 0 });
  }

  mesh(object) {
    const geometry = new this.THREE.BufferGeometry();
    geometry.setAttribute("position", new this.THREE.BufferAttribute(object.points, 3));
    geometry.setIndex(new this.THREE.BufferAttribute(object.corners, 1));
    geometry.computeVertexNormals();
    const material = this.material(object);
    material.side = this.THREE.DoubleSide;
    return new this.THREE.Mesh(geometry, material);
  }

  discs(object) {
    const T = this.THREE, count = object.points.length / 3;
    const shape = new T.InstancedMesh(new T.CircleGeometry(object.radius, 10), this.material(object), count);
    const place = new T.Object3D(), ahead = new T.Vector3();
    for (let i = 0; i < count; i++) {
      place.position.fromArray(object.points, 3 * i);
      place.lookAt(ahead.fromArray(object.normals, 3 * i).add(place.position));
      place.updateMatrix();
      shape.setMatrixAt(i, place.matrix);
    }
    shape.frustumCulled = false;
    return shape;
  }

  draw(view) {
    const { azimuth, elevation } = view.group, eye = distance(view.group), [x, y, z] = view.group.centre;
    const flat = Math.cos(elevation) * eye;
    this.camera.position.set(x + Math.sin(azimuth) * flat, y + Math.sin(elevation) * eye, z + Math.cos(azimuth) * flat);
    this.camera.lookAt(x, y, z);
    const shape = this.shape(view.object);
    this.scene.add(shape);
    this.renderer.render(this.scene, this.camera);
    this.scene.remove(shape);
    view.context.clearRect(0, 0, PIXELS, PIXELS);
    view.context.drawImage(this.renderer.domElement, 0, 0);
  }
}

// Without WebGL: the same picture by sorting faces (or points) by depth; slower, so it is drawn once and on a key or a drag.
class Painter {
  draw(view) {
    const { context, group } = view, object = decode(view.object), points = object.points;
    const focal = PIXELS / 2 / Math.tan((FIELD_OF_VIEW * Math.PI) / 360), eye = distance(group);
    const ca = Math.cos(group.azimuth), sa = Math.sin(group.azimuth), ce = Math.cos(group.elevation), se = Math.sin(group.elevation);
    const seen = new Float32Array(points.length); // x and y in pixels, z the depth
    for (let i = 0; i < points.length; i += 3) {
      const x = points[i] - group.centre[0], y = points[i + 1] - group.centre[1], z = points[i + 2] - group.centre[2];
      const ahead = sa * x + ca * z, depth = eye - (ce * ahead + se * y), scale = focal / depth;
      seen.set([PIXELS / 2 + (ca * x - sa * z) * scale, PIXELS / 2 - (ce * y - se * ahead) * scale, depth], i);
    }
    const size = object.corners ? 3 : 1, corners = object.corners || Uint16Array.from({ length: points.length / 3 }, (_, i) => i);
    const depth = (k) => { let sum = 0; for (let j = 0; j < size; j++) sum += seen[3 * corners[size * k + j] + 2]; return sum / size; };
    const depths = Float32Array.from({ length: corners.length / size }, (_, k) => depth(k));
    const order = [...depths.keys()].sort((a, b) => depths[b] - depths[a]);
    const tint = [16, 8, 0].map((shift) => (COLOURS[object.role] >> shift) & 255);
    context.clearRect(0, 0, PIXELS, PIXELS);
    for (const k of order) {
      const at = Array.from({ length: size }, (_, j) => 3 * corners[size * k + j]);
      let light;
      if (size === 3) {
        const [a, b, c] = at;
        const turn = (seen[b] - seen[a]) * (seen[c + 1] - seen[a + 1]) - (seen[c] - seen[a]) * (seen[b + 1] - seen[a + 1]);
        if (turn > 0) continue; // looks away
        const u = [0, 1, 2].map((j) => points[b + j] - points[a + j]), v = [0, 1, 2].map((j) => points[c + j] - points[a + j]);
        const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
        light = shade(n, ca, sa, ce, se) / (Math.hypot(...n) || 1);
      } else {
        light = shade(object.normals.subarray(at[0], at[0] + 3), ca, sa, ce, se);
        if (light < -0.2) continue;
      }
      const value = 0.55 + 0.5 * Math.max(0, light);
      context.fillStyle = context.strokeStyle = `rgb(${tint.map((part) => Math.min(255, part * value)).join()})`;
      context.beginPath();
      if (size === 3) at.forEach((p) => context.lineTo(seen[p], seen[p + 1]));
      else context.arc(seen[at[0]], seen[at[0] + 1], (object.radius * focal) / seen[at[0] + 2], 0, 7);
      context.closePath();
      context.fill();
      context.stroke();
    }
  }
}

// How much a direction looks at a light above the eye's right shoulder.
function shade([x, y, z], ca, sa, ce, se) {
  const ahead = sa * x + ca * z;
  return 0.3 * (ca * x - sa * z) + 0.5 * (ce * y - se * ahead) + 0.81 * (ce * ahead + se * y);
}

function distance(group) {
  return (group.radius * 1.04) / Math.sin((FIELD_OF_VIEW * Math.PI) / 360) / group.zoom;
}

// --- views and hands -------------------------------------------------------------------------------------------------

const groups = new Map(), views = [];
let artist = null, waiting = false;

function addView(canvas, object, name) {
  canvas.width = canvas.height = PIXELS;
  if (!groups.has(name)) groups.set(name, { ...START, radius: 0, centre: object.frame.centre, views: [] });
  const group = groups.get(name), view = { canvas, object, group, context: canvas.getContext("2d"), visible: false, stale: true };
  group.radius = Math.max(group.radius, object.frame.radius);
  group.views.push(view);
  views.push(view);
  listen(view);
  if (artist) watcher.observe(canvas);
}

// For a page whose shapes arrive later: show `object` on a canvas, in place of what it showed before.
globalThis.g3ptViewer = {
  show(canvas, object, name) {
    const view = views.find((each) => each.canvas === canvas);
    if (!view) return addView(canvas, object, name);
    artist?.forget?.(view.object);
    view.object = object;
    drawSoon(view.group);
  },
  remove(canvas) {
    const place = views.findIndex((each) => each.canvas === canvas);
    if (place < 0) return;
    const [view] = views.splice(place, 1);
    watcher.unobserve(canvas);
    artist?.forget?.(view.object);
    view.group.views = view.group.views.filter((each) => each !== view);
    if (!view.group.views.length) for (const [name, group] of groups) if (group === view.group) groups.delete(name);
  },
};

for (const canvas of document.querySelectorAll("canvas[data-object]")) addView(canvas, OBJECTS[Number(canvas.dataset.object)], canvas.dataset.group);

function drawSoon(group) {
  for (const view of group ? group.views : []) view.stale = true;
  if (waiting || !artist) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const view of views) {
      if (!view.visible || !view.stale) continue;
      view.stale = false;
      artist.draw(view);
      view.canvas.dataset.drawn = String(Number(view.canvas.dataset.drawn || 0) + 1);
    }
  });
}

function turn(group, right, up) {
  group.azimuth -= right;
  group.elevation = Math.max(-1.5, Math.min(1.5, group.elevation + up));
  drawSoon(group);
}

function listen({ canvas, group }) {
  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    last = event;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last || event.pointerId !== last.pointerId) return;
    const speed = 4 / canvas.clientWidth; // a drag across the picture turns it by 4 radians
    turn(group, (event.clientX - last.clientX) * speed, event.pointerType === "touch" ? 0 : (event.clientY - last.clientY) * speed);
    last = event;
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
  canvas.addEventListener("dblclick", () => drawSoon(Object.assign(group, START)));
  const keys = {
    ArrowLeft: () => turn(group, -0.2, 0), ArrowRight: () => turn(group, 0.2, 0),
    ArrowUp: () => turn(group, 0, -0.2), ArrowDown: () => turn(group, 0, 0.2),
    "+": () => drawSoon(zoom(group, 1.15)), "=": () => drawSoon(zoom(group, 1.15)), "-": () => drawSoon(zoom(group, 1 / 1.15)),
    Home: () => drawSoon(Object.assign(group, START)),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
}

function zoom(group, factor) {
  group.zoom = Math.max(0.4, Math.min(6, group.zoom * factor));
  return group;
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const view = views.find((each) => each.canvas === entry.target);
    if (view) view.visible = entry.isIntersecting;
  }
  drawSoon();
}, { rootMargin: "300px" });
openArtist().then((found) => {
  artist = found;
  for (const view of views) watcher.observe(view.canvas);
});
