"""The renderer's programs (GLSL 3.30).

Positions are in world units, `R` is in the rest frame (dm) or a strand's brightness.
Irradiance of the environment comes by vertex (`in_irr`), the key light by pixel with a shadow map.
"""

VERTEX = """#version 330
in vec3 in_pos; in vec3 in_nrm; in vec2 in_uv; in vec3 in_rest; in vec3 in_irr;
uniform mat4 VP;
out vec3 P, N, R, I;
out vec2 uv;
void main() {
  P = in_pos; N = in_nrm; R = in_rest; I = in_irr; uv = in_uv;
  gl_Position = VP * vec4(in_pos, 1);
}
"""

NECKLINE = """
// height above the neckline (dm): prm.x moves it, prm.y makes it a V in front
float neckline(vec3 R, vec4 prm) {
  float line = prm.x - prm.y * max(0., .5 - abs(R.x)) * step(0., R.z);
  return R.y - (5.98 + line + .28 * smoothstep(.9, .0, R.z) + .10 * smoothstep(.2, .9, abs(R.x)));
}
"""

COMMON = (
    """#version 330
in vec3 P, N, R, I;
in vec2 uv;
layout(location = 0) out vec4 o;
uniform sampler2D tex, noise, smap;
uniform mat4 LVP;
uniform vec3 eye, keydir, keycol;
uniform float soft, expo;
uniform vec3 sh[9];
uniform vec4 prm, prm2;
uniform vec3 tint, tint2;

vec3 shade_sh(vec3 n) {
  return max(vec3(0), sh[0] * .2821 + .4886 * (sh[1] * n.y + sh[2] * n.z + sh[3] * n.x)
    + 1.0925 * (sh[4] * n.x * n.y + sh[5] * n.y * n.z + sh[7] * n.x * n.z)
    + .3154 * sh[6] * (3. * n.z * n.z - 1.) + .5463 * sh[8] * (n.x * n.x - n.y * n.y));
}
const vec2 DISK[8] = vec2[8](vec2(.25, 0), vec2(-.319, .292), vec2(.049, -.557), vec2(.402, .525),
  vec2(-.738, -.131), vec2(.700, -.445), vec2(-.234, .870), vec2(-.446, -.859));
float shadow(vec3 p, vec3 n) {
  vec3 q = (LVP * vec4(p + n * .006, 1)).xyz * .5 + .5;
  float s = 0.;
  float a = fract(sin(dot(gl_FragCoord.xy, vec2(12.9898, 78.233))) * 43758.5453) * 6.2832;
  float c = cos(a) * soft, d = sin(a) * soft;
  mat2 M = mat2(c, d, -d, c);
  for (int i = 0; i < TAPS; i++)
    s += textureLod(smap, q.xy + M * DISK[i], 0.).r > q.z - .004 - soft * .3 ? 1. : 0.;
  return s / float(TAPS);
}
vec3 tone(vec3 c) {
  c *= expo;
  c = c * (1. + c * .12) / (1. + c * .42);
  return pow(clamp(c, 0., 1.), vec3(1. / 2.2));
}
// how much of the environment a point sees
float openness(vec3 n) {
  return clamp(dot(I, vec3(.33)) / max(dot(shade_sh(n), vec3(.33)), .05), 0., 1.);
}
float ggx(float nh, float r) {
  float a = r * r * r * r;
  float d = nh * nh * (a - 1.) + 1.;
  return a / (3.1416 * d * d);
}
"""
    + NECKLINE
)

SKIN = """
void main() {
  vec3 n = normalize(N), v = normalize(eye - P);
  if (dot(n, v) < 0.) n = -n;
  vec3 alb = texture(tex, uv).rgb;
  float pore = texture(noise, uv * 14.).r - .5, pore2 = texture(noise, uv * 31. + .37).g - .5;
  float mot = texture(noise, uv * 3.1).b - .5, fr = texture(noise, uv * 9.).a;
  alb *= 1. + .16 * pore + .10 * pore2;
  alb *= 1. + vec3(.06, -.06, -.04) * mot * 2.;
  // freckles
  float face = smoothstep(5.9, 6.4, R.y) * smoothstep(.7, 1.2, R.z);
  alb *= mix(vec3(1), vec3(.72, .55, .42),
    prm.x * face * smoothstep(.66, .9, fr) * smoothstep(2., .6, abs(R.y - 7.1) * 1.6));
  // lipstick (the mask is the texture's alpha), blush on cheeks and nose
  float lip = texture(tex, uv).a;
  alb = mix(alb, tint2, lip * prm.w * .65);
  vec3 cheek = (vec3(abs(R.x), R.y, R.z) - vec3(.46, 6.95, 1.3)) * vec3(3.2, 4., 2.);
  alb *= mix(vec3(1), vec3(1.06, .84, .85), exp(-dot(cheek, cheek)) * .9);
  vec3 nose = (R - vec3(0, 6.93, 1.62)) * vec3(4., 5., 4.);
  alb *= mix(vec3(1), vec3(1.04, .86, .86), exp(-dot(nose, nose)) * .8);
  // stubble as pigment
  float jaw = smoothstep(.02, -.16, R.y - (6.62 + .55 * smoothstep(.35, .95, abs(R.x))))
    * smoothstep(5.95, 6.25, R.y) * smoothstep(.35, .75, R.z);
  float mst = smoothstep(.17, .08, abs(R.y - 6.76)) * smoothstep(.36, .25, abs(R.x)) * smoothstep(1.3, 1.45, R.z);
  float bm = max(jaw, mst) * (1. - lip);
  float st = .55 * texture(noise, uv * 46.).g + .45 * texture(noise, uv * 83. + .2).r;
  alb = mix(alb, tint * 1.2 + .01, bm * prm.y * (.25 + .6 * smoothstep(.45, .7, st)));
  // cropped hair as pigment
  float ax = abs(R.x);
  float zl = R.y < 6.9 ? mix(.12, .2, (R.y - 6.4) / .5)
    : R.y < 7.12 ? mix(.2, .64, (R.y - 6.9) / .22)
    : R.y < 7.5 ? mix(.64, .74, (R.y - 7.12) / .38)
    : R.y < 7.9 ? mix(.74, .9, (R.y - 7.5) / .4) : mix(.9, 1.15, (R.y - 7.9) / .3);
  float tp = R.y - (7.85 + .26 * prm2.z * exp(-pow((ax - .38) / .2, 2.)) + .15 * prm2.z - .05 * ax);
  float scalp = max(smoothstep(-.05, .12, tp), smoothstep(-.06, .10, zl - R.z) * step(6.42, R.y))
    * (1. - step(.80, ax) * step(R.y, 7.52));
  alb = mix(alb, tint * .8, scalp * prm2.x * mix(.62 + .36 * smoothstep(.38, .62, st), .96, prm2.y));
  // pores in the normal
  vec2 e = vec2(1. / 512., 0);
  float h0 = texture(noise, uv * 20.).r;
  vec3 T = normalize(cross(vec3(0, 1, 0), n) + 1e-4), B = cross(n, T);
  float hx = texture(noise, uv * 20. + e.xy).r - h0, hy = texture(noise, uv * 20. + e.yx).r - h0;
  vec3 nn = normalize(n + .10 * (hx * T + hy * B) * 6.);
  // diffuse: red light reaches further round the terminator
  float nl = dot(nn, keydir), sd = shadow(P, n);
  vec3 wrap = vec3(.35, .16, .10);
  vec3 dif = clamp((nl + wrap) / (1. + wrap), 0., 1.);
  dif *= mix(vec3(sd), vec3(sqrt(sd), sd, sd), .6);
  vec3 col = alb * (I + keycol * dif);
  // gloss
  vec3 h = normalize(keydir + v);
  float nh = max(dot(nn, h), 0.), nv = max(dot(nn, v), 0.), F = .028 + .972 * pow(1. - max(dot(h, v), 0.), 5.);
  float oil = prm.z * (.55 + .45 * smoothstep(.4, .0, abs(R.x)) + .3 * lip * 2.) * (1. + .8 * pore);
  float sp = (.75 * ggx(nh, .52) + .25 * ggx(nh, .30) * oil) * F * max(nl, 0.) / (4. * max(nv, .2)) * 1.6;
  float occ = openness(n);
  vec3 r = reflect(-v, nn);
  float Fe = .028 + .12 * pow(1. - nv, 5.);
  occ *= occ;
  col += keycol * sp * sd * 3.1416 * (.6 + .6 * oil) + shade_sh(r) * Fe * occ * (.35 + .6 * oil);
  o = vec4(tone(col), 1);
}
"""

EYE = """
uniform vec3 axis;
void main() {
  vec3 n = normalize(N), v = normalize(eye - P);
  vec3 alb = pow(texture(tex, uv).rgb, vec3(2.2)) * vec3(.92, .88, .86);
  float iris = smoothstep(.875, .90, dot(n, axis));
  vec3 grey = vec3(dot(alb, vec3(.4, .45, .15))) * vec3(1., .93, .85);
  alb = mix(alb * .74, mix(grey, alb, prm.x) * vec3(.92, 1., 1.) * 1.6 + .004, iris);
  vec3 nc = normalize(n + axis * .35 * iris);
  float sd = shadow(P, n);
  vec3 col = alb * (I * 1.05 + keycol * clamp((dot(n, keydir) + .15) / 1.15, 0., 1.) * sd);
  col *= mix(.72, 1., smoothstep(.42, .05, n.y));  // the upper lid's shade
  vec3 h = normalize(keydir + v);
  float F = .03, sp = ggx(max(dot(nc, h), 0.), .17) * F * .5, occ = openness(n);
  vec3 r = reflect(-v, nc);
  vec3 env = shade_sh(r);
  env = env * smoothstep(-.1, .6, r.y);
  col += keycol * min(sp, 6.) * max(sd, .35) + env * (.03 + .3 * pow(1. - max(dot(nc, v), 0.), 5.)) * occ * 1.6;
  o = vec4(tone(col), 1);
}
"""

TEETH = """
void main() {
  vec3 n = normalize(N), v = normalize(eye - P);
  vec3 alb = pow(texture(tex, uv).rgb, vec3(2.2)) * prm.x * vec3(1.12, 1.04, .92);
  float sd = shadow(P, n) * .7;
  vec3 col = alb * (I * 2.2 + .25 * shade_sh(v) + keycol * max(dot(n, keydir), 0.) * sd);
  vec3 h = normalize(keydir + v);
  col += keycol * ggx(max(dot(n, h), 0.), .3) * .04 * sd;
  o = vec4(tone(col), 1);
}
"""

CLOTH = """
void main() {
  vec3 n = normalize(N), v = normalize(eye - P);
  if (dot(n, v) < 0.) n = -n;
  float d = neckline(R, prm);
  if (d > 0.) discard;
  float w = texture(noise, R.xy * 1.3 + R.z * .7).g;
  float knit = texture(noise, uv * 40.).r;
  vec3 alb = tint * (.8 + .4 * knit);
  if (prm.z > 2.5) alb = mix(alb, tint2, step(.5, fract(R.y * 3.2)));
  else if (prm.z > 1.5) alb = mix(alb, tint2, step(.55, texture(noise, R.xy * .4).b));
  alb *= 1. - .35 * smoothstep(-.07, -.05, d) * smoothstep(-.035, -.05, d);
  n = normalize(n + .25 * (w - .5) * vec3(1, .4, .3));
  float sd = shadow(P, n);
  vec3 col = alb * (I + keycol * clamp((dot(n, keydir) + .1) / 1.1, 0., 1.) * sd);
  o = vec4(tone(col), 1);
}
"""

HAIR = """
uniform float amin, amax, apow;
void main() {
  vec4 t = texture(tex, uv);
  float a = pow(clamp(t.a * prm2.y, 0., 1.), apow);
  if (a < amin || a > amax) discard;
  vec3 n = normalize(N), v = normalize(eye - P);
  if (dot(n, v) < 0.) n = -n;
  float l = dot(pow(t.rgb, vec3(2.2)), vec3(.3, .5, .2)) / max(prm.x, 1e-4);
  vec3 alb = tint * clamp(mix(1., pow(l, .8), prm.y), .15, 2.6);
  if (R.x > 0.) alb *= R.x;
  // the strand's direction: where v grows over the surface
  vec3 dx = dFdx(P), dy = dFdy(P);
  vec2 ux = dFdx(uv), uy = dFdy(uv);
  vec3 T = normalize((dy * ux.x - dx * uy.x) * sign(ux.x * uy.y - uy.x * ux.y) + vec3(0, 1e-5, 0));
  T = normalize(T - n * dot(T, n) + n * (l - 1.) * .12);
  float sd = shadow(P, n);
  vec3 h = normalize(keydir + v);
  float nl = dot(n, keydir), dif = clamp((nl + .45) / 1.45, 0., 1.);
  vec3 col = alb * (I + keycol * dif * sd);
  // two highlights across the strands
  float th = dot(T + n * .12, h) / length(T + n * .12), th2 = dot(T - n * .10, h) / length(T - n * .10);
  float s1 = pow(max(1. - th * th, 0.), 60.), s2 = pow(max(1. - th2 * th2, 0.), 18.);
  float occ = openness(n);
  vec3 spec = (vec3(.012) * s1 + alb * .5 * s2) * smoothstep(-.1, .4, nl) * sd * keycol;
  vec3 e = shade_sh(reflect(-v, n));
  spec += e * occ * occ * (vec3(.003) + alb * .09) * clamp(.4 + .6 * l, 0., 1.5);
  col += spec * prm.z;
  if (amin > .5) a = 1.;
  o = vec4(tone(col) * a, a);
}
"""

SOLID = """
void main() {
  vec3 n = normalize(N), v = normalize(eye - P);
  if (dot(n, v) < 0.) n = -n;
  float sd = shadow(P, n);
  vec3 col = tint * (I + keycol * max(dot(n, keydir), 0.) * sd);
  vec3 h = normalize(keydir + v);
  float F = .04 + .96 * pow(1. - max(dot(n, v), 0.), 5.);
  col += keycol * min(ggx(max(dot(n, h), 0.), .35), 8.) * .05 * sd + shade_sh(reflect(-v, n)) * F * .15 * openness(n);
  o = vec4(tone(col), 1);
}
"""

LENS = """
void main() {
  vec3 n = normalize(N), v = normalize(eye - P);
  if (dot(n, v) < 0.) n = -n;
  float F = .04 + .96 * pow(1. - max(dot(n, v), 0.), 5.), a = clamp(prm.x + F * .5, 0., 1.);
  vec3 col = tint * prm.x * I + shade_sh(reflect(-v, n)) * F * .25;
  vec3 h = normalize(keydir + v);
  col += keycol * min(ggx(max(dot(n, h), 0.), .12), 12.) * .02;
  o = vec4(tone(col / max(a, .02)) * a, a);
}
"""

DEPTH_VERTEX = """#version 330
in vec3 in_pos; in vec2 in_uv;
uniform mat4 VP;
out vec2 uv;
void main() { uv = in_uv; gl_Position = VP * vec4(in_pos, 1); }
"""

DEPTH = """#version 330
in vec2 uv;
uniform sampler2D tex;
uniform float amin, ak;
void main() { if (amin > 0. && texture(tex, uv).a * ak < amin) discard; }
"""

CLOTH_DEPTH_VERTEX = """#version 330
in vec3 in_pos; in vec3 in_rest;
uniform mat4 VP;
out vec3 R;
void main() { R = in_rest; gl_Position = VP * vec4(in_pos, 1); }
"""

CLOTH_DEPTH = (
    """#version 330
in vec3 R;
uniform vec4 prm;
"""
    + NECKLINE
    + "void main() { if (neckline(R, prm) > 0.) discard; }\n"
)

SURFACES = {
    "skin": (SKIN, 8),
    "eye": (EYE, 4),
    "teeth": (TEETH, 3),
    "cloth": (CLOTH, 5),
    "hair": (HAIR, 4),
    "solid": (SOLID, 4),
    "lens": (LENS, 1),
}
"""Kind of mesh -> its shading and how often it looks into the shadow map."""


def fragment(kind: str) -> str:
    """The fragment program of a kind of mesh (a card's is hair's)."""
    shading, taps = SURFACES["hair" if kind == "card" else kind]
    return COMMON.replace("TAPS", str(taps)) + shading
