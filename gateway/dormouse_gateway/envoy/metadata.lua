-- The first filter: what a call's metadata may hold, before anything of its message is.
--
-- bootstrap.py puts METADATA_BYTES, ENTRY_BYTES, HEAVY_BYTES, TABLE_BYTES, HOPS and CAME_BACK in front, and two headers on each call: `dormouse-size`, Envoy's
-- sum of names and values, and `dormouse-wire`, the bytes that they came in.

local function refuse(h, code, text)
  h:respond({[":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = code, ["grpc-message"] = text})
end

-- As HTTP/2 counts them (RFC 9113, 6.5.2). Every hop behind takes as much as is let through; each would refuse more in its own way, some with
-- the connection. An entry takes at least one byte on the wire and one of a name, so most calls are not counted one by one.
local function bytes(hd, size, wire)
  local most = size + math.min(size, wire) * ENTRY_BYTES
  if most <= HEAVY_BYTES then return most end
  local total = 0
  for name, value in pairs(hd) do total = total + #name + #value + ENTRY_BYTES end
  return total
end

local function check(h)
  local hd = h:headers()
  local size, wire = tonumber(hd:get("dormouse-size")) or 0, tonumber(hd:get("dormouse-wire")) or 0
  hd:remove("dormouse-size")
  hd:remove("dormouse-wire")
  if hd:get(HOPS) then return refuse(h, "9", CAME_BACK) end
  -- Compression saves three eighths of a text (RFC 7541, appendix B), and the sender's table, of which each entry is worth naming once in a
  -- call. Whoever names one again and again fills our memory for one byte a time. (A smaller table does not help: a sender that does not
  -- acknowledge our settings keeps the one that HTTP/2 begins with.)
  if size > 2 * wire + TABLE_BYTES then
    return refuse(h, "8", string.format("metadata: %d bytes found in %d bytes of compressed headers, at most %d are allowed: some are repeated",
                                   size, wire, 2 * wire + TABLE_BYTES))
  end
  local total = bytes(hd, size, wire)
  if total > METADATA_BYTES then
    return refuse(h, "8", string.format("metadata: %d bytes found, at most %d are allowed (names, values and %d bytes for each entry)",
                                   total, METADATA_BYTES, ENTRY_BYTES))
  end
  if total > HEAVY_BYTES then hd:replace("dormouse-heavy", "1") end
end

-- An error in a filter's script lets the call go on: then it counts as heavy.
function envoy_on_request(h)
  local ok, problem = pcall(check, h)
  if not ok then
    h:logErr("metadata.lua: " .. tostring(problem))
    h:headers():replace("dormouse-heavy", "1")
  end
end
