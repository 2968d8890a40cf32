-- The fast path: finds the function and the session of a unary ModelInfer, and names the owner of its shard to Envoy.
--
-- Every call enters in the scope '+', whose one cluster is the relay. This filter moves a call out of it only where everything is plain: the
-- function is known to this Envoy, the message could be read, the shard has a living owner. Whatever is unknown, contradictory, compressed or
-- wrong stays in '+', and the relay answers it with the code and the text that it deserves; so nothing is guessed here, and there is one place
-- that words errors. What this file must compute exactly like Python is `session_key` and `crc32` (dormouse_core.sessions; one set of vectors).
--
-- One Lua VM per Envoy worker thread; bootstrap.py puts DEFAULT_NAMESPACE, RELAY, OWN_NAMES, MESSAGE_FIELDS, MODEL_NAME_BYTES,
-- SESSION_ID_CHARACTERS, TENANT_CHARACTERS, APART (µs: a clock that was so far ahead was wrong) and TEST_CLOCK_OFFSET (µs; 0 but in tests) in
-- front.

local bit = require("bit")
local floor = math.floor
local INFER = "/inference.GRPCInferenceService/ModelInfer"
local ENTRY = "+"
local WINDOW = 4096        -- bytes copied from Envoy's buffer at a time; long fields are skipped, not copied
local Router = {}          -- the functions that tests call

---------------------------------------------------------------------------------------------------------------------- the call's key
-- {µs}-g-{nonce}-{n}. The nonce is read from the system: math.random repeats itself across Envoy's threads. 'g-' keeps it apart from
-- callers' ids, which become 'c-...'.
local NONCE
local function another_maker()
  local source = assert(io.open("/dev/urandom", "rb"))
  NONCE = source:read(10):gsub(".", function(c) return string.format("%02x", c:byte()) end)
  source:close()
end
another_maker()
local count, last, told, behind = 0, 0, 0, nil
local PATIENCE = 2000000   -- µs; the agent tells a new correction within a second of a jump

-- The timestamp of a key: this machine's clock with the correction that the agent measured, and above the one before, also where the clock
-- goes back: an older timestamp could be taken for a call that was made long ago. 16 digits are below 2^53.
--
-- But where the clock was far ahead until now, every key would be, for as long as it was: so they go on under another nonce, whose
-- timestamps nobody has seen. That it was is known once the correction says so, or the clock stays behind.
function Router.stamp(clock, correction)
  clock, correction = tonumber(clock), tonumber(correction) or 0
  local now = clock + correction
  if now >= last - APART then
    behind = nil
  elseif correction ~= told or (behind and clock - behind > PATIENCE) then
    another_maker()
    last, behind = 0, nil
  else
    behind = behind and math.min(behind, clock) or clock
  end
  if now <= last then now = last + 1 end
  last, told = now, correction
  return string.format("%016.0f", now)
end
function Router.maker() return NONCE end

local function call_key(h)
  count = count + 1
  local clock = tonumber(h:timestampString(EnvoyTimestampResolution.MICROSECOND)) + TEST_CLOCK_OFFSET
  -- The entry's virtual host has the correction: metadata() is asked once for each call, and later, for the function's route.
  local stamp = Router.stamp(clock, h:virtualHost():metadata():get("clock"))
  return stamp .. "-g-" .. NONCE .. "-" .. string.format("%x", count)
end

--------------------------------------------------------------------------------------------------------- names, as dormouse_core.sessions
local CRC = {}
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do
    if c % 2 == 1 then c = bit.bxor(bit.rshift(c, 1), 0xEDB88320) else c = bit.rshift(c, 1) end
  end
  CRC[i] = c
end
function Router.crc32(s)
  local c = -1
  for i = 1, #s do
    c = bit.bxor(bit.rshift(c, 8), CRC[bit.band(bit.bxor(c, s:byte(i)), 0xff)])
  end
  return bit.bnot(c) % 4294967296
end

function Router.encode(s)
  return (s:gsub("[^A-Za-z0-9_.~-]", function(c) return string.format("%%%02X", c:byte()) end))
end

-- An int64 as its two unsigned 32-bit halves, to decimal text. Doubles hold 53 bits, so the number itself never exists here.
local function unsigned_text(hi, lo)
  if hi < 2097152 then return string.format("%.0f", hi * 4294967296 + lo) end
  local parts = {}
  repeat                                           -- long division by 10^6: remainder * 2^32 stays below 2^53
    local r = hi % 1000000
    hi = (hi - r) / 1000000
    local low = r * 4294967296 + lo
    local digits = low % 1000000
    lo = (low - digits) / 1000000
    if lo >= 4294967296 then hi = hi + floor(lo / 4294967296); lo = lo % 4294967296 end
    table.insert(parts, 1, string.format("%06d", digits))
  until hi == 0 and lo == 0
  return (table.concat(parts):gsub("^0+", ""))
end
function Router.int64_text(hi, lo)
  if hi < 2147483648 then return unsigned_text(hi, lo) end
  if lo == 0 then return "-" .. unsigned_text(4294967296 - hi, 0) end   -- two's complement
  return "-" .. unsigned_text(4294967295 - hi, 4294967296 - lo)
end

--------------------------------------------------------------------------------------------------------------- reading the message
-- A protobuf reader over Envoy's buffer (any object with getBytes). Errors are raised; the caller takes them for "unreadable".
local Reader = {}
Reader.__index = Reader
local left = 0             -- fields that may still be read: this thread's other callers wait meanwhile (dormouse_core.wire)
local function reader(buf, pos, stop)
  return setmetatable({buf = buf, pos = pos, stop = stop, window = "", start = 0}, Reader)
end
function Reader:byte()
  local i = self.pos - self.start + 1
  if i < 1 or i > #self.window then
    local n = self.stop - self.pos
    if n <= 0 then error("short", 0) end
    if n > WINDOW then n = WINDOW end
    self.window, self.start, i = self.buf:getBytes(self.pos, n), self.pos, 1
  end
  self.pos = self.pos + 1
  return self.window:byte(i)
end
function Reader:varint()                           -- the value (exact below 2^53), and its two halves
  local lo, hi, shift = 0, 0, 0
  for _ = 1, 10 do
    local b = self:byte()
    local v = b % 128
    if shift < 28 then lo = lo + v * 2 ^ shift
    elseif shift == 28 then lo = lo + (v % 16) * 2 ^ 28; hi = floor(v / 16)
    elseif shift < 63 then hi = hi + v * 2 ^ (shift - 32)
    else hi = hi + (v % 2) * 2 ^ 31 end
    if b < 128 then return hi * 4294967296 + lo, hi, lo end
    shift = shift + 7
  end
  error("varint", 0)
end
function Reader:tag()
  left = left - 1
  if left < 0 then error("fields", 0) end
  return self:varint()
end
function Reader:advance(n)
  if n > self.stop - self.pos then error("short", 0) end
  self.pos = self.pos + n
end
function Reader:text()
  local n = self:varint()
  local at = self.pos
  self:advance(n)
  return n == 0 and "" or self.buf:getBytes(at, n)
end
function Reader:skip(wire)
  if wire == 0 then self:varint()
  elseif wire == 1 then self:advance(8)
  elseif wire == 2 then self:advance((self:varint()))
  elseif wire == 5 then self:advance(4)
  else error("wire type", 0) end
end
function Reader:part()                             -- a reader of the length-delimited field that begins here
  local n = self:varint()
  local at = self.pos
  self:advance(n)
  return reader(self.buf, at, at + n)
end

-- A value of `parameters`: 'i:7', 's:name', or '' for "no sequence" (0, ""). Raises on any other kind: the relay words the refusal.
local function choice(r)
  local out = ""
  while r.pos < r.stop do
    local tag = r:tag()
    if tag == 16 then
      local _, hi, lo = r:varint()
      out = (hi == 0 and lo == 0) and "" or "i:" .. Router.int64_text(hi, lo)
    elseif tag == 26 then
      local s = r:text()
      out = s == "" and "" or "s:" .. Router.encode(s)
    else error("kind of parameter", 0) end
  end
  return out
end

-- model_name and sequence of an unframed inference.ModelInferRequest between pos and stop; sequence nil: not given. Of doubled fields the last
-- wins, as in protobuf.
function Router.read_request(buf, pos, stop)
  local r, model, sequence = reader(buf, pos, stop), "", nil
  left = MESSAGE_FIELDS
  while r.pos < stop do
    local tag = r:tag()
    if tag == 10 then model = r:text()
    elseif tag == 34 then
      local entry, key, value = r:part(), nil, nil
      while entry.pos < entry.stop do
        local t = entry:tag()
        if t == 10 then key = entry:text()
        elseif t == 18 then
          if value then error("doubled value", 0) end
          value = entry:part()
        else error("field of an entry", 0) end     -- protobuf's runtimes differ in what they make of such an entry
      end
      if key == "sequence_id" then sequence = value and choice(value) or "" end
    else r:skip(tag % 8) end
  end
  if sequence == "" then sequence = nil end
  return model, sequence
end

local function read_body(body)
  local length = body and body:length() or 0
  if length < 5 then error("short", 0) end
  local flag, a, b, c, d = body:getBytes(0, 5):byte(1, 5)
  if flag ~= 0 then error("compressed", 0) end
  if ((a * 256 + b) * 256 + c) * 256 + d + 5 ~= length then error("length", 0) end
  return Router.read_request(body, 5, length)
end

---------------------------------------------------------------------------------------------------------------- which function
local LABEL = "[a-z0-9][a-z0-9-]*"
local function named(text)                         -- 'ns/fn', or nil
  return text and text:match("^" .. LABEL .. "/" .. LABEL .. "$")
end

function Router.from_authority(authority)
  if not authority then return nil end
  local host = authority:lower():gsub(":%d+$", "")
  if OWN_NAMES[host] then return nil end
  local fn, ns, rest = host:match("^(" .. LABEL .. ")%.(" .. LABEL .. ")(.*)$")
  if not fn then return nil end
  if rest == "" or rest == ".svc" or rest == ".svc.cluster.local" or rest == ".svc.cluster.local." then return ns .. "/" .. fn end
  return nil
end

-- The namespace, or nil, and the function's name, or nil, in a model_name: as dormouse_core.modelnames.
local function parse(model)
  if #model > MODEL_NAME_BYTES then return nil, nil end
  local ns, name = model:match("^(" .. LABEL .. ")/([^/]+)$")
  name = name or model
  if name:match("^" .. LABEL .. "$") then return ns, name end
  if name:match("^[A-Za-z0-9][A-Za-z0-9_.-]*$") then return ns, (name:lower():gsub("[-_.]+", "-")) end
  return nil, nil
end

function Router.from_model(model)
  local ns, name = parse(model)
  return name and (ns or DEFAULT_NAMESPACE) .. "/" .. name
end

-- Does the message agree with the function that was named otherwise? Its model_name may be empty, fn, or ns/fn.
local function agrees(model, fn)
  if model == "" then return true end
  local ns, name = parse(model)
  return name ~= nil and name == fn:match("/(.*)$") and (ns == nil or ns == fn:match("^(.-)/"))
end

------------------------------------------------------------------------------------------------------------------ who owns the shard
-- The agent writes into the route's metadata: uid, rev, and for a stateful function hosts = 'ip:port,ip:port' (or paths of Unix sockets), map = two characters a shard:
-- digits of base 90 from '!' on, of the host's place in the list; '~~' is nobody.
local lists, listed = {}, 0
local function hosts_of(text)
  local list = lists[text]
  if list then return list end
  if listed > 4096 then lists, listed = {}, 0 end  -- old maps are forgotten, all at once: the list is cheap to make again
  list = {}
  for host in text:gmatch("[^,]+") do list[#list + 1] = host end
  lists[text], listed = list, listed + 1
  return list
end
function Router.owner(map, hosts, key)
  local shard = Router.crc32(key) % (#map / 2)
  local high, low = map:byte(shard * 2 + 1, shard * 2 + 2)
  return hosts_of(hosts)[(high - 33) * 90 + (low - 33) + 1]
end

-------------------------------------------------------------------------------------------------------------------------- routing
local ONCE = {"dormouse-function", "dormouse-session", "dormouse-tenant", "dormouse-idempotency-key"}

-- True: the call goes by its function's route. Else it stays in the entry's scope.
local function route(h)
  local hd = h:headers()
  hd:replace("dormouse-call", call_key(h))
  for _, name in ipairs(ONCE) do
    if hd:getNumValues(name) > 1 then return end   -- two values: not "the first wins"
  end
  local fn = hd:get("dormouse-function")
  if fn then
    fn = named(fn)
    if not fn then return end
  else
    fn = Router.from_authority(hd:get(":authority"))
    if fn then hd:replace("dormouse-function", fn) end
  end
  if hd:get(":path") ~= INFER then return end
  local encoding = hd:get("grpc-encoding")
  if encoding and encoding ~= "identity" then return end
  if hd:get("dormouse-heavy") then return end      -- the entry's route for it has a timer for when memory is short

  local session, tenant = hd:get("dormouse-session"), hd:get("dormouse-tenant") or ""
  if (session and (session == "" or #session > SESSION_ID_CHARACTERS)) or #tenant > TENANT_CHARACTERS then return end
  local sequence = session and "s:" .. Router.encode(session)
  if not (fn and session) then
    local ok, model, found = pcall(read_body, h:body())
    if not ok then return end
    hd = h:headers()                               -- body() has yielded: wrappers from before are dead
    if not fn then
      fn = Router.from_model(model)
      if not fn then return end
      hd:replace("dormouse-function", fn)
    elseif not agrees(model, fn) then return end
    if sequence and found and sequence ~= found then return end
    sequence = sequence or found
  end

  hd:replace("dormouse-fn", fn)
  h:clearRouteCache()
  local meta = h:metadata()
  local uid, map = meta:get("uid"), meta:get("map")
  local owner
  if uid and map and sequence then owner = Router.owner(map, meta:get("hosts"), Router.encode(tenant) .. "/" .. sequence) end
  if not uid or not (owner or (not map and meta:get("open"))) then
    -- Not known to this Envoy, or nobody serves it: by the entry's route to the relay, which waits for an agent that restarts. (Envoy would
    -- find the relay here too, at priority 1, but with this route's one quick retry.)
    hd:replace("dormouse-fn", ENTRY)
    h:clearRouteCache()
    return
  end
  hd:replace("dormouse-uid", uid)
  hd:replace("dormouse-rev", meta:get("rev"))
  if owner then hd:replace("dormouse-owner", owner .. "," .. RELAY) end   -- try n goes to entry n; the route allows two
  return true
end


local function request(h)
  if route(h) then return end
  h:headers():replace("dormouse-whole", "1")       -- for the relay; on a route without a timer, for the message has come
  h:clearRouteCache()
end

-- An error in a filter's script lets the call go on, unrouted: catch it. LuaJIT yields (body()) inside pcall.
function envoy_on_request(h)
  local ok, problem = pcall(request, h)
  if not ok then
    h:logErr("router.lua: " .. tostring(problem))
    h:respond({[":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = "13",
               ["grpc-message"] = "the gateway's router failed; its log names the cause"})
  end
end
